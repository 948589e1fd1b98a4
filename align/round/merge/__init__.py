"""Merge of what a round trained with earlier weights, before the gate."""
