"""Evaluation: rows of models answer a task's questions; files hold what came of it, tables are made of them."""
