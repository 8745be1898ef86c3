-- Names of everything in some containers.
local names = {}
for container in pairs(args.containers) do
  for name in zfs.list.children(container) do
    names[name] = true
  end
end
return { names = names }
