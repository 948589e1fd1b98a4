"""Model folders, and the checks before anything starts that one can be trained and served.

`align.learner.model.loading` reads and writes weights, and `align.learner.model.mapping.stored_form` names
them as files and engines do.
"""
