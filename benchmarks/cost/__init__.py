"""What metanets and UNF layers cost, against their published forms."""
