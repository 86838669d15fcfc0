"""The colours that regions, words and plots share, so that one colour means one thing on the whole page."""

# Okabe and Ito (2008): eight colours that people with a colour vision deficiency can tell apart; this is their set
# without black, ordered so that neighbours differ most.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
BLUE, ORANGE, GREEN, PURPLE, SKY, RED, YELLOW = PALETTE
GREY = "#8A8F98"
