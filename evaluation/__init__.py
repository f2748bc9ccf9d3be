"""The nuScenes metric over stored arrays, submissions, pictures and reports. It never runs a model."""
