"""Operations of blocks with hand-written backward passes that save memory."""
