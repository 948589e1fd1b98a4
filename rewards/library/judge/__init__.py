"""A language model as the judge, behind any OpenAI-compatible endpoint."""
