"""Detectors in plain torch, LiDAR and camera; any of them may be a teacher or a student.

`models.detector` is the protocol they share, `models.build` makes one from a preset or a config and reads and writes
its weights; each other file is one part of a detector and can be read alone.
"""
