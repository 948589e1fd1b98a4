"""A campaign's production behind one address: vLLM on a verified snapshot, and a proxy that swaps it.

It needs the extra ``serve``, and vLLM.
"""
