"""One hospital: its cohort, its prepared volumes and its Flower ClientApp."""
