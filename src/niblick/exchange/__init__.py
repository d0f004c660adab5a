"""Models from and to other tools: published state dicts, submission folders."""
