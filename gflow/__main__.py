from gflow.app.cli import main

main()
