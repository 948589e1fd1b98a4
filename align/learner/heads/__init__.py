"""Models with a head that gives one number: critics and reward models."""
