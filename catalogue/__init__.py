"""Raw catalogues into clean records: read, judged, without duplicates, accounted for; their index and their report."""
