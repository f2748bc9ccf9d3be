"""Teachers that this project did not train: checkpoints of OpenPCDet and mmdetection3d, and callables named by import.

`opening` decides what a teacher and a file are; `reading` reads foreign files without running anything in them;
`openpcdet` and `mmdetection3d` say which tensor is which; `mapping` carries that out; `imported` calls a callable.
"""
