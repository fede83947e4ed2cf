module endless

go 1.19
