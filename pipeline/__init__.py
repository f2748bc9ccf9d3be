"""nuScenes -> frames -> teacher -> masks -> stores, as a Dask graph; the simulator; no student training here."""
