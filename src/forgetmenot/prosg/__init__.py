"""ProSG from scratch, as its abstract describes the method; the details are ours."""
