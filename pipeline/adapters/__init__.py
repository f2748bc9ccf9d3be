"""Teachers that this project did not train: checkpoints of OpenPCDet and mmdetection3d, and callables named by import.

`opening` decides what a teacher and a file are; `reading` reads foreign files without running anything in them;
`foreign` tells whose network a file holds, `query_teacher` goes on for Object-DGCNN; `openpcdet`, `mmdetection3d` and
`object_dgcnn` say which tensor is which; `mapping` carries that out; `imported` calls a callable.
"""
