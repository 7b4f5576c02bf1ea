"""Software for the tile: assembler, compiler, loaders, runtime."""
