"""What is asked and what people get back: prompts of questions, answers, and their text as it grows."""
