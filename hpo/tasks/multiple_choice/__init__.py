"""Multiple choice: a text, several ways to go on, of which one is right."""
