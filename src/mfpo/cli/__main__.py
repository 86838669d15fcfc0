from mfpo.cli import main

main()
