"""The admin API: health, metrics, receipts and public keys over HTTP, on a listener of its own."""
