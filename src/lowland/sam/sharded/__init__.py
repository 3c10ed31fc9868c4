"""m-SAM of models cut by ``fully_shard``: no shard moves where every group climbs by itself."""
