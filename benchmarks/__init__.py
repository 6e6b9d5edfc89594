"""Programs that measure; nothing here asserts. Each times its sides interleaved in one run and prints ratios."""
