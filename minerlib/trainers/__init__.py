"""Reference trainers: whole papers trained with our miner. Each is imported only when asked for."""
