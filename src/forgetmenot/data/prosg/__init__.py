"""Parts of ProSG-PF, the prompt-forgetting set: world, templates, items, bodies, rules, files."""
