"""Pictures, plots and reports of networks and plans; each module is imported when it is used."""
