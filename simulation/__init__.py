"""Eight synthetic hospitals on one machine, and the engines that run a study over them."""
