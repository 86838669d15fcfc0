"""The paper's tables and figures, each as one command: `mfpo reproduce`."""
