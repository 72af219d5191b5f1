"""ProSG: a from-scratch implementation of the method as the abstract describes it; the details are ours."""
