"""The tasks of the command line, one module a group; `tasks.py` collects them."""
