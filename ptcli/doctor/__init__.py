"""`ptcli doctor`: does what is installed here do what it should. This half is light; `ptcli.doctor.math` is not."""
