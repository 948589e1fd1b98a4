"""Model folders: checks that one can be trained and served, and reading and writing of weights.

`checks` refuses a folder before anything is started. `loading` is the only place that reads weights, and
`stored_form` the only one that names them as files and engines do.
"""
