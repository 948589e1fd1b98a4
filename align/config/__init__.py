"""The campaign file as frozen models, one file per part, and the rules between them."""
