"""Episodes: completions of several turns, between which the policy acts in an environment.

Tokens in, tokens out: what was sampled is never tokenized again, and what the environment says is appended
as tokens of the chat template that carry no loss.
"""
