"""Models that come with evalkit: `demo`, made on the spot, and `smollm2`, fetched by its hash."""
