"""What training reads: tokens, pixels and labels of catalogs, and which of them at which step."""
