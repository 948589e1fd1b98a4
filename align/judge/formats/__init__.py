"""A judgement for people and programs: on a screen, as Markdown, as JUnit's XML."""
