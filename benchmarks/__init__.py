"""What is measured: commands that write a table, a plot, the machine and the date."""
