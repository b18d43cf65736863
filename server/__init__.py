"""The centre: the ServerApp that runs a study, its state, its results and its report."""
