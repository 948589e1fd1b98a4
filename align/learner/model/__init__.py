"""Model folders: what they must hold to be trained and served, and how weights are read and written.

`checks` refuses a folder before anything is started. `loading` is the only place that reads weights, and
`stored_form` the only one that names them as files and engines do.
"""
