"""The paper: Dual-Sampling Attention Network (Ouyang et al., IEEE TMI 2020), with no federation in it."""
