"""What the hospital's and the centre's daemons are both made of; knows nothing of the paper."""
