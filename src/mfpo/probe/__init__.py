"""The paper's analyses of what a model looks at."""
