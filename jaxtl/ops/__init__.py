"""Operations that need a lowering of their own on some platform."""
