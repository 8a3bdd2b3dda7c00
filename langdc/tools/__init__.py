"""The commands of `langdc` that neither train nor evaluate, and the model of lmms-eval."""
