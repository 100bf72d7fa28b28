"""Any backbone as a model of lmms-eval."""
