"""Evaluation: rows of models answer a task's questions; files hold what came of it, tables and pages are made of them."""
