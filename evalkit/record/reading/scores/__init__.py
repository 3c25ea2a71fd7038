"""A record's scores: in order, with direction, scale and interval; per document for pairing."""
