"""What everything stands on: files, names, places, processes, the hub, and which code a result depends on."""
